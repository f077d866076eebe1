"""`pyro-ar anomaly`: rows ranked by log p(x), and how well that finds what does not belong."""
