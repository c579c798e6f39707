"""One file per outside library that is not always there; imported lazily, and the only importer of it."""
