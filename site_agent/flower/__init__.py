"""The only room of the site that knows Flower."""
