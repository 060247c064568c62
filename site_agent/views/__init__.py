"""Source views: what a site knows of its codes, as one matrix each."""
