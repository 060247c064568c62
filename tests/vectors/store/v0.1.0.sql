BEGIN TRANSACTION;
CREATE TABLE access_token (
	number INTEGER NOT NULL, 
	name VARCHAR(64) NOT NULL, 
	role VARCHAR(16) NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	created DATETIME NOT NULL, 
	expires DATETIME, 
	revoked DATETIME, 
	PRIMARY KEY (number), 
	UNIQUE (digest)
);
INSERT INTO "access_token" VALUES(1,'ada@north','reviewer','ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff','2026-07-01 12:30:15.123456',NULL,NULL);
INSERT INTO "access_token" VALUES(2,'bob','analyst','9999999999999999999999999999999999999999999999999999999999999999','2026-07-01 12:30:15.123456','2026-07-01 12:30:15.123456','2026-07-01 12:30:15.123456');
CREATE TABLE delivery (
	version INTEGER NOT NULL, 
	site VARCHAR(32) NOT NULL, 
	receipt VARCHAR(20000) NOT NULL, 
	received DATETIME NOT NULL, 
	PRIMARY KEY (version, site), 
	FOREIGN KEY(version) REFERENCES published (version), 
	FOREIGN KEY(site) REFERENCES site (name)
);
INSERT INTO "delivery" VALUES(1,'lake','{"site":"lake"}','2026-07-01 12:30:15.123456');
INSERT INTO "delivery" VALUES(1,'north','{"site":"north"}','2026-07-01 12:30:15.123456');
INSERT INTO "delivery" VALUES(1,'south','{"site":"south"}','2026-07-01 12:30:15.123456');
CREATE TABLE published (
	version INTEGER NOT NULL, 
	round VARCHAR(32) NOT NULL, 
	manifest_digest VARCHAR(64) NOT NULL, 
	fitted_with VARCHAR(100000) NOT NULL, 
	created DATETIME NOT NULL, 
	withdrawn DATETIME, 
	erased BOOLEAN NOT NULL, 
	PRIMARY KEY (version), 
	FOREIGN KEY(round) REFERENCES round (name)
);
INSERT INTO "published" VALUES(1,'r0','dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd','lake north south west','2026-07-01 12:30:15.123456','2026-09-29 12:30:15.123456',1);
INSERT INTO "published" VALUES(2,'r1','dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd','lake north south west','2026-07-01 12:30:15.123456',NULL,0);
CREATE TABLE review_head (
	id INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "review_head" VALUES(1,3,'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee');
CREATE TABLE review_record (
	number INTEGER NOT NULL, 
	signed BLOB NOT NULL, 
	PRIMARY KEY (number)
);
INSERT INTO "review_record" VALUES(1,X'7B226E756D626572223A317D00FF');
INSERT INTO "review_record" VALUES(2,X'7B226E756D626572223A327D00FF');
INSERT INTO "review_record" VALUES(3,X'7B226E756D626572223A337D00FF');
CREATE TABLE round (
	name VARCHAR(32) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	call BLOB NOT NULL, 
	opened DATETIME NOT NULL, 
	expires DATETIME NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "round" VALUES('r0','delivered',X'000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F202122232425262728292A2B2C2D2E2F303132333435363738393A3B3C3D3E3F404142434445464748494A4B4C4D4E4F505152535455565758595A5B5C5D5E5F606162636465666768696A6B6C6D6E6F707172737475767778797A7B7C7D7E7F808182838485868788898A8B8C8D8E8F909192939495969798999A9B9C9D9E9FA0A1A2A3A4A5A6A7A8A9AAABACADAEAFB0B1B2B3B4B5B6B7B8B9BABBBCBDBEBFC0C1C2C3C4C5C6C7C8C9CACBCCCDCECFD0D1D2D3D4D5D6D7D8D9DADBDCDDDEDFE0E1E2E3E4E5E6E7E8E9EAEBECEDEEEFF0F1F2F3F4F5F6F7F8F9FAFBFCFDFEFF','2026-07-01 12:30:15.123456','2026-07-31 12:30:15.123456');
INSERT INTO "round" VALUES('r1','published',X'7B22726F756E64223A227075626C6973686564227D','2026-07-31 12:30:15.123456','2026-08-30 12:30:15.123456');
INSERT INTO "round" VALUES('r2','fitted',X'7B22726F756E64223A22666974746564227D','2026-08-30 12:30:15.123456','2026-09-29 12:30:15.123456');
INSERT INTO "round" VALUES('r3','closed',X'7B22726F756E64223A22636C6F736564227D','2026-09-29 12:30:15.123456','2026-10-29 12:30:15.123456');
INSERT INTO "round" VALUES('r4','open',X'7B22726F756E64223A226F70656E227D','2026-10-29 12:30:15.123456','2026-11-28 12:30:15.123456');
CREATE TABLE site (
	name VARCHAR(32) NOT NULL, 
	keys VARCHAR(8192) NOT NULL, 
	node_key VARCHAR(1024) NOT NULL, 
	contact VARCHAR(200) NOT NULL, 
	enrolled DATETIME NOT NULL, 
	accepted_sequence INTEGER NOT NULL, 
	accepted_digest VARCHAR(64) NOT NULL, 
	result_digest VARCHAR(64) NOT NULL, 
	known_keys VARCHAR(1024) NOT NULL, 
	withdrawn DATETIME, 
	PRIMARY KEY (name)
);
INSERT INTO "site" VALUES('lake','{"suite":"mlkem768-x25519","signing":"lake","sealing":"é0"}','ecdsa-sha2-nistp384 AAAAlake','Jürgen O''Neil <it@lake.example>','2026-07-01 12:30:15.123456',2,'0000000000000000000000000000000000000000000000000000000000000000','rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr','{"party":"lake","first":"0"}',NULL);
INSERT INTO "site" VALUES('north','{"suite":"mlkem768-x25519","signing":"north","sealing":"é1"}','ecdsa-sha2-nistp384 AAAAnorth','Jürgen O''Neil <it@north.example>','2026-07-02 12:30:15.123456',2,'1111111111111111111111111111111111111111111111111111111111111111','rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr','',NULL);
INSERT INTO "site" VALUES('south','{"suite":"mlkem768-x25519","signing":"south","sealing":"é2"}','ecdsa-sha2-nistp384 AAAAsouth','Jürgen O''Neil <it@south.example>','2026-07-03 12:30:15.123456',2,'2222222222222222222222222222222222222222222222222222222222222222','rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr','',NULL);
INSERT INTO "site" VALUES('west','{"suite":"mlkem768-x25519","signing":"west","sealing":"é3"}','ecdsa-sha2-nistp384 AAAAwest','Jürgen O''Neil <it@west.example>','2026-07-04 12:30:15.123456',1,'3333333333333333333333333333333333333333333333333333333333333333','rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr','','2026-09-29 12:30:15.123456');
CREATE TABLE site_key (
	digest VARCHAR(64) NOT NULL, 
	site VARCHAR(32) NOT NULL, 
	keys VARCHAR(8192) NOT NULL, 
	since DATETIME NOT NULL, 
	until DATETIME, 
	revoked DATETIME, 
	PRIMARY KEY (digest), 
	FOREIGN KEY(site) REFERENCES site (name)
);
INSERT INTO "site_key" VALUES('0000000000000000000000000000000000000000000000000000000000000000','lake','{}','2026-07-01 12:30:15.123456',NULL,NULL);
INSERT INTO "site_key" VALUES('1111111111111111111111111111111111111111111111111111111111111111','north','{}','2026-07-02 12:30:15.123456',NULL,NULL);
INSERT INTO "site_key" VALUES('2222222222222222222222222222222222222222222222222222222222222222','south','{}','2026-07-03 12:30:15.123456',NULL,NULL);
INSERT INTO "site_key" VALUES('3333333333333333333333333333333333333333333333333333333333333333','west','{}','2026-07-04 12:30:15.123456','2026-09-29 12:30:15.123456','2026-09-29 12:30:15.123456');
CREATE TABLE submission (
	id INTEGER NOT NULL, 
	round VARCHAR(32) NOT NULL, 
	site VARCHAR(32) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	detail VARCHAR(2000) NOT NULL, 
	sequence INTEGER NOT NULL, 
	manifest_digest VARCHAR(64) NOT NULL, 
	envelope_digest VARCHAR(64) NOT NULL, 
	ledger_head VARCHAR(64) NOT NULL, 
	signer VARCHAR(64) NOT NULL, 
	received DATETIME NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (round, site), 
	FOREIGN KEY(round) REFERENCES round (name), 
	FOREIGN KEY(site) REFERENCES site (name)
);
INSERT INTO "submission" VALUES(1,'r0','lake','accepted','',1,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc','0000000000000000000000000000000000000000000000000000000000000000','2026-07-01 12:30:16.123456');
INSERT INTO "submission" VALUES(2,'r0','north','accepted','',1,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc','0000000000000000000000000000000000000000000000000000000000000000','2026-07-01 12:30:16.123456');
INSERT INTO "submission" VALUES(3,'r0','south','accepted','',1,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc','0000000000000000000000000000000000000000000000000000000000000000','2026-07-01 12:30:16.123456');
INSERT INTO "submission" VALUES(4,'r0','west','withdrawn','',1,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc','0000000000000000000000000000000000000000000000000000000000000000','2026-07-01 12:30:16.123456');
INSERT INTO "submission" VALUES(5,'r1','lake','accepted','',2,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc','0000000000000000000000000000000000000000000000000000000000000000','2026-07-31 12:30:16.123456');
INSERT INTO "submission" VALUES(6,'r1','north','accepted','',2,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc','0000000000000000000000000000000000000000000000000000000000000000','2026-07-31 12:30:16.123456');
INSERT INTO "submission" VALUES(7,'r1','south','accepted','',2,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc','0000000000000000000000000000000000000000000000000000000000000000','2026-07-31 12:30:16.123456');
INSERT INTO "submission" VALUES(8,'r1','west','withdrawn','',2,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc','0000000000000000000000000000000000000000000000000000000000000000','2026-07-31 12:30:16.123456');
INSERT INTO "submission" VALUES(9,'r2','lake','accepted','',3,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc','0000000000000000000000000000000000000000000000000000000000000000','2026-08-30 12:30:16.123456');
INSERT INTO "submission" VALUES(10,'r2','north','accepted','',3,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc','0000000000000000000000000000000000000000000000000000000000000000','2026-08-30 12:30:16.123456');
INSERT INTO "submission" VALUES(11,'r2','south','refused','It''s stale; “quoted”',3,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc','0000000000000000000000000000000000000000000000000000000000000000','2026-08-30 12:30:16.123456');
INSERT INTO "submission" VALUES(12,'r2','west','withdrawn','',3,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc','0000000000000000000000000000000000000000000000000000000000000000','2026-08-30 12:30:16.123456');
CREATE TABLE withdrawal (
	id INTEGER NOT NULL, 
	site VARCHAR(32) NOT NULL, 
	reason VARCHAR(2000) NOT NULL, 
	at DATETIME NOT NULL, 
	node_key VARCHAR(1024) NOT NULL, 
	node_denied BOOLEAN NOT NULL, 
	erase_versions BOOLEAN NOT NULL, 
	affected_rounds VARCHAR(100000) NOT NULL, 
	affected_sums VARCHAR(100000) NOT NULL, 
	affected_versions VARCHAR(100000) NOT NULL, 
	affected_fits VARCHAR(100000) NOT NULL, 
	reviewed VARCHAR(1000000) NOT NULL, 
	refit_round VARCHAR(32) NOT NULL, 
	step VARCHAR(16) NOT NULL, 
	erased_bytes INTEGER NOT NULL, 
	new_version INTEGER NOT NULL, 
	outcome VARCHAR(2000) NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(site) REFERENCES site (name)
);
INSERT INTO "withdrawal" VALUES(1,'west','the ethics board ended its consent','2026-09-29 12:30:15.123456','ecdsa-sha2-nistp384 AAAAwest',1,1,'r0 r1','m1','1','r0','{"r0":{"north":"looked at"}}','r1','published',2000000000,2,'');
COMMIT;
