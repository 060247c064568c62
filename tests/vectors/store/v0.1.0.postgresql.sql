SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;
SET default_tablespace = '';
SET default_table_access_method = heap;
CREATE TABLE public.access_token (
    number integer NOT NULL,
    name character varying(64) NOT NULL,
    role character varying(16) NOT NULL,
    digest character varying(64) NOT NULL,
    created timestamp without time zone NOT NULL,
    expires timestamp without time zone,
    revoked timestamp without time zone
);
CREATE SEQUENCE public.access_token_number_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.access_token_number_seq OWNED BY public.access_token.number;
CREATE TABLE public.delivery (
    version integer NOT NULL,
    site character varying(32) NOT NULL,
    receipt character varying(20000) NOT NULL,
    received timestamp without time zone NOT NULL
);
CREATE TABLE public.published (
    version integer NOT NULL,
    round character varying(32) NOT NULL,
    manifest_digest character varying(64) NOT NULL,
    fitted_with character varying(100000) NOT NULL,
    created timestamp without time zone NOT NULL,
    withdrawn timestamp without time zone,
    erased boolean NOT NULL
);
CREATE SEQUENCE public.published_version_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.published_version_seq OWNED BY public.published.version;
CREATE TABLE public.review_head (
    id integer NOT NULL,
    number integer NOT NULL,
    digest character varying(64) NOT NULL
);
CREATE TABLE public.review_record (
    number integer NOT NULL,
    signed bytea NOT NULL
);
CREATE TABLE public.round (
    name character varying(32) NOT NULL,
    state character varying(16) NOT NULL,
    call bytea NOT NULL,
    opened timestamp without time zone NOT NULL,
    expires timestamp without time zone NOT NULL
);
CREATE TABLE public.site (
    name character varying(32) NOT NULL,
    keys character varying(8192) NOT NULL,
    node_key character varying(1024) NOT NULL,
    contact character varying(200) NOT NULL,
    enrolled timestamp without time zone NOT NULL,
    accepted_sequence integer NOT NULL,
    accepted_digest character varying(64) NOT NULL,
    result_digest character varying(64) NOT NULL,
    known_keys character varying(1024) NOT NULL,
    withdrawn timestamp without time zone
);
CREATE TABLE public.site_key (
    digest character varying(64) NOT NULL,
    site character varying(32) NOT NULL,
    keys character varying(8192) NOT NULL,
    since timestamp without time zone NOT NULL,
    until timestamp without time zone,
    revoked timestamp without time zone
);
CREATE TABLE public.submission (
    id integer NOT NULL,
    round character varying(32) NOT NULL,
    site character varying(32) NOT NULL,
    state character varying(16) NOT NULL,
    detail character varying(2000) NOT NULL,
    sequence integer NOT NULL,
    manifest_digest character varying(64) NOT NULL,
    envelope_digest character varying(64) NOT NULL,
    ledger_head character varying(64) NOT NULL,
    signer character varying(64) NOT NULL,
    received timestamp without time zone NOT NULL
);
CREATE SEQUENCE public.submission_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.submission_id_seq OWNED BY public.submission.id;
CREATE TABLE public.withdrawal (
    id integer NOT NULL,
    site character varying(32) NOT NULL,
    reason character varying(2000) NOT NULL,
    at timestamp without time zone NOT NULL,
    node_key character varying(1024) NOT NULL,
    node_denied boolean NOT NULL,
    erase_versions boolean NOT NULL,
    affected_rounds character varying(100000) NOT NULL,
    affected_sums character varying(100000) NOT NULL,
    affected_versions character varying(100000) NOT NULL,
    affected_fits character varying(100000) NOT NULL,
    reviewed character varying(1000000) NOT NULL,
    refit_round character varying(32) NOT NULL,
    step character varying(16) NOT NULL,
    erased_bytes integer NOT NULL,
    new_version integer NOT NULL,
    outcome character varying(2000) NOT NULL
);
CREATE SEQUENCE public.withdrawal_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.withdrawal_id_seq OWNED BY public.withdrawal.id;
ALTER TABLE ONLY public.access_token ALTER COLUMN number SET DEFAULT nextval('public.access_token_number_seq'::regclass);
ALTER TABLE ONLY public.published ALTER COLUMN version SET DEFAULT nextval('public.published_version_seq'::regclass);
ALTER TABLE ONLY public.submission ALTER COLUMN id SET DEFAULT nextval('public.submission_id_seq'::regclass);
ALTER TABLE ONLY public.withdrawal ALTER COLUMN id SET DEFAULT nextval('public.withdrawal_id_seq'::regclass);
INSERT INTO public.access_token VALUES (1, 'ada@north', 'reviewer', 'ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff', '2026-07-01 12:30:15.123456', NULL, NULL);
INSERT INTO public.access_token VALUES (2, 'bob', 'analyst', '9999999999999999999999999999999999999999999999999999999999999999', '2026-07-01 12:30:15.123456', '2026-07-01 12:30:15.123456', '2026-07-01 12:30:15.123456');
INSERT INTO public.delivery VALUES (1, 'lake', '{"site":"lake"}', '2026-07-01 12:30:15.123456');
INSERT INTO public.delivery VALUES (1, 'north', '{"site":"north"}', '2026-07-01 12:30:15.123456');
INSERT INTO public.delivery VALUES (1, 'south', '{"site":"south"}', '2026-07-01 12:30:15.123456');
INSERT INTO public.published VALUES (1, 'r0', 'dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd', 'lake north south west', '2026-07-01 12:30:15.123456', '2026-09-29 12:30:15.123456', true);
INSERT INTO public.published VALUES (2, 'r1', 'dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd', 'lake north south west', '2026-07-01 12:30:15.123456', NULL, false);
INSERT INTO public.review_head VALUES (1, 3, 'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee');
INSERT INTO public.review_record VALUES (1, '\x7b226e756d626572223a317d00ff');
INSERT INTO public.review_record VALUES (2, '\x7b226e756d626572223a327d00ff');
INSERT INTO public.review_record VALUES (3, '\x7b226e756d626572223a337d00ff');
INSERT INTO public.round VALUES ('r0', 'delivered', '\x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f606162636465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9fa0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebfc0c1c2c3c4c5c6c7c8c9cacbcccdcecfd0d1d2d3d4d5d6d7d8d9dadbdcdddedfe0e1e2e3e4e5e6e7e8e9eaebecedeeeff0f1f2f3f4f5f6f7f8f9fafbfcfdfeff', '2026-07-01 12:30:15.123456', '2026-07-31 12:30:15.123456');
INSERT INTO public.round VALUES ('r1', 'published', '\x7b22726f756e64223a227075626c6973686564227d', '2026-07-31 12:30:15.123456', '2026-08-30 12:30:15.123456');
INSERT INTO public.round VALUES ('r2', 'fitted', '\x7b22726f756e64223a22666974746564227d', '2026-08-30 12:30:15.123456', '2026-09-29 12:30:15.123456');
INSERT INTO public.round VALUES ('r3', 'closed', '\x7b22726f756e64223a22636c6f736564227d', '2026-09-29 12:30:15.123456', '2026-10-29 12:30:15.123456');
INSERT INTO public.round VALUES ('r4', 'open', '\x7b22726f756e64223a226f70656e227d', '2026-10-29 12:30:15.123456', '2026-11-28 12:30:15.123456');
INSERT INTO public.site VALUES ('lake', '{"suite":"mlkem768-x25519","signing":"lake","sealing":"é0"}', 'ecdsa-sha2-nistp384 AAAAlake', 'Jürgen O''Neil <it@lake.example>', '2026-07-01 12:30:15.123456', 2, '0000000000000000000000000000000000000000000000000000000000000000', 'rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr', '{"party":"lake","first":"0"}', NULL);
INSERT INTO public.site VALUES ('north', '{"suite":"mlkem768-x25519","signing":"north","sealing":"é1"}', 'ecdsa-sha2-nistp384 AAAAnorth', 'Jürgen O''Neil <it@north.example>', '2026-07-02 12:30:15.123456', 2, '1111111111111111111111111111111111111111111111111111111111111111', 'rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr', '', NULL);
INSERT INTO public.site VALUES ('south', '{"suite":"mlkem768-x25519","signing":"south","sealing":"é2"}', 'ecdsa-sha2-nistp384 AAAAsouth', 'Jürgen O''Neil <it@south.example>', '2026-07-03 12:30:15.123456', 2, '2222222222222222222222222222222222222222222222222222222222222222', 'rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr', '', NULL);
INSERT INTO public.site VALUES ('west', '{"suite":"mlkem768-x25519","signing":"west","sealing":"é3"}', 'ecdsa-sha2-nistp384 AAAAwest', 'Jürgen O''Neil <it@west.example>', '2026-07-04 12:30:15.123456', 1, '3333333333333333333333333333333333333333333333333333333333333333', 'rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr', '', '2026-09-29 12:30:15.123456');
INSERT INTO public.site_key VALUES ('0000000000000000000000000000000000000000000000000000000000000000', 'lake', '{}', '2026-07-01 12:30:15.123456', NULL, NULL);
INSERT INTO public.site_key VALUES ('1111111111111111111111111111111111111111111111111111111111111111', 'north', '{}', '2026-07-02 12:30:15.123456', NULL, NULL);
INSERT INTO public.site_key VALUES ('2222222222222222222222222222222222222222222222222222222222222222', 'south', '{}', '2026-07-03 12:30:15.123456', NULL, NULL);
INSERT INTO public.site_key VALUES ('3333333333333333333333333333333333333333333333333333333333333333', 'west', '{}', '2026-07-04 12:30:15.123456', '2026-09-29 12:30:15.123456', '2026-09-29 12:30:15.123456');
INSERT INTO public.submission VALUES (1, 'r0', 'lake', 'accepted', '', 1, 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb', 'cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc', '0000000000000000000000000000000000000000000000000000000000000000', '2026-07-01 12:30:16.123456');
INSERT INTO public.submission VALUES (2, 'r0', 'north', 'accepted', '', 1, 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb', 'cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc', '0000000000000000000000000000000000000000000000000000000000000000', '2026-07-01 12:30:16.123456');
INSERT INTO public.submission VALUES (3, 'r0', 'south', 'accepted', '', 1, 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb', 'cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc', '0000000000000000000000000000000000000000000000000000000000000000', '2026-07-01 12:30:16.123456');
INSERT INTO public.submission VALUES (4, 'r0', 'west', 'withdrawn', '', 1, 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb', 'cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc', '0000000000000000000000000000000000000000000000000000000000000000', '2026-07-01 12:30:16.123456');
INSERT INTO public.submission VALUES (5, 'r1', 'lake', 'accepted', '', 2, 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb', 'cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc', '0000000000000000000000000000000000000000000000000000000000000000', '2026-07-31 12:30:16.123456');
INSERT INTO public.submission VALUES (6, 'r1', 'north', 'accepted', '', 2, 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb', 'cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc', '0000000000000000000000000000000000000000000000000000000000000000', '2026-07-31 12:30:16.123456');
INSERT INTO public.submission VALUES (7, 'r1', 'south', 'accepted', '', 2, 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb', 'cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc', '0000000000000000000000000000000000000000000000000000000000000000', '2026-07-31 12:30:16.123456');
INSERT INTO public.submission VALUES (8, 'r1', 'west', 'withdrawn', '', 2, 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb', 'cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc', '0000000000000000000000000000000000000000000000000000000000000000', '2026-07-31 12:30:16.123456');
INSERT INTO public.submission VALUES (9, 'r2', 'lake', 'accepted', '', 3, 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb', 'cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc', '0000000000000000000000000000000000000000000000000000000000000000', '2026-08-30 12:30:16.123456');
INSERT INTO public.submission VALUES (10, 'r2', 'north', 'accepted', '', 3, 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb', 'cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc', '0000000000000000000000000000000000000000000000000000000000000000', '2026-08-30 12:30:16.123456');
INSERT INTO public.submission VALUES (11, 'r2', 'south', 'refused', 'It''s stale; “quoted”', 3, 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb', 'cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc', '0000000000000000000000000000000000000000000000000000000000000000', '2026-08-30 12:30:16.123456');
INSERT INTO public.submission VALUES (12, 'r2', 'west', 'withdrawn', '', 3, 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb', 'cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc', '0000000000000000000000000000000000000000000000000000000000000000', '2026-08-30 12:30:16.123456');
INSERT INTO public.withdrawal VALUES (1, 'west', 'the ethics board ended its consent', '2026-09-29 12:30:15.123456', 'ecdsa-sha2-nistp384 AAAAwest', true, true, 'r0 r1', 'm1', '1', 'r0', '{"r0":{"north":"looked at"}}', 'r1', 'published', 2000000000, 2, '');
SELECT pg_catalog.setval('public.access_token_number_seq', 2, true);
SELECT pg_catalog.setval('public.published_version_seq', 1, false);
SELECT pg_catalog.setval('public.submission_id_seq', 12, true);
SELECT pg_catalog.setval('public.withdrawal_id_seq', 1, true);
ALTER TABLE ONLY public.access_token
    ADD CONSTRAINT access_token_digest_key UNIQUE (digest);
ALTER TABLE ONLY public.access_token
    ADD CONSTRAINT access_token_pkey PRIMARY KEY (number);
ALTER TABLE ONLY public.delivery
    ADD CONSTRAINT delivery_pkey PRIMARY KEY (version, site);
ALTER TABLE ONLY public.published
    ADD CONSTRAINT published_pkey PRIMARY KEY (version);
ALTER TABLE ONLY public.review_head
    ADD CONSTRAINT review_head_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.review_record
    ADD CONSTRAINT review_record_pkey PRIMARY KEY (number);
ALTER TABLE ONLY public.round
    ADD CONSTRAINT round_pkey PRIMARY KEY (name);
ALTER TABLE ONLY public.site_key
    ADD CONSTRAINT site_key_pkey PRIMARY KEY (digest);
ALTER TABLE ONLY public.site
    ADD CONSTRAINT site_pkey PRIMARY KEY (name);
ALTER TABLE ONLY public.submission
    ADD CONSTRAINT submission_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.submission
    ADD CONSTRAINT submission_round_site_key UNIQUE (round, site);
ALTER TABLE ONLY public.withdrawal
    ADD CONSTRAINT withdrawal_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.delivery
    ADD CONSTRAINT delivery_site_fkey FOREIGN KEY (site) REFERENCES public.site(name);
ALTER TABLE ONLY public.delivery
    ADD CONSTRAINT delivery_version_fkey FOREIGN KEY (version) REFERENCES public.published(version);
ALTER TABLE ONLY public.published
    ADD CONSTRAINT published_round_fkey FOREIGN KEY (round) REFERENCES public.round(name);
ALTER TABLE ONLY public.site_key
    ADD CONSTRAINT site_key_site_fkey FOREIGN KEY (site) REFERENCES public.site(name);
ALTER TABLE ONLY public.submission
    ADD CONSTRAINT submission_round_fkey FOREIGN KEY (round) REFERENCES public.round(name);
ALTER TABLE ONLY public.submission
    ADD CONSTRAINT submission_site_fkey FOREIGN KEY (site) REFERENCES public.site(name);
ALTER TABLE ONLY public.withdrawal
    ADD CONSTRAINT withdrawal_site_fkey FOREIGN KEY (site) REFERENCES public.site(name);
