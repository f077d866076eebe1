"""`pyro-ar compare`."""
