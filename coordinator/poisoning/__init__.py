"""What one site could do to the others' codes, and what stops it: checks of releases, and a bound in the fit."""
