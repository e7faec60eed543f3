"""One result, many views."""
