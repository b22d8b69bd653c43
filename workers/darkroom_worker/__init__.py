"""The glue between Darkroom's platform and its engine: doorbell -> claim -> engine -> storage -> finish."""
