"""The store: LMDB environments, one a dataset, and what may be done with them."""
