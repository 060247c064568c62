"""The only room of the coordinator that knows Flower."""
