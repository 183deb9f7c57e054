"""Measures engines: workloads offline, open-loop load against any OpenAI endpoint, and tasks with checkable answers."""
