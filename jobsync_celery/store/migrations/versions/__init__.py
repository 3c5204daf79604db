"""Revisions, each with ``upgrade(tables)``: names come from the database, so that prefix and schema apply."""
