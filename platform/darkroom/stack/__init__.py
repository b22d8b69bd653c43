"""The embedded stack: the same parts as in production, started together on one machine for `darkroom up`."""
