"""The service that readers and reviewers of a map meet: an API, FHIR, and pages."""
