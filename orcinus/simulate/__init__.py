"""The twin: core unchanged under a virtual clock, with a cost model where the workers would be."""
