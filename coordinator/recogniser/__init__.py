"""Which sites or modalities went into a vector: the recogniser, and the audit of an alignment that is made of it."""
