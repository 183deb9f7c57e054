"""Orcinus serves large language models; see docs/ and README.md."""
