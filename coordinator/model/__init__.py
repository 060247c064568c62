"""Pure numerics: SMILE and its rivals."""
