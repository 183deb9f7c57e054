"""How orcinus-tiny is made: text from a seed, a tokeniser, training, evaluation, a model card."""
