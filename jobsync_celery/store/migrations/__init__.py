"""The history of the tables, one module per revision; run by ``store.schema``."""
