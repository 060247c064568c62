"""Views that the coordinator makes itself: of public knowledge and of pooled counts."""
