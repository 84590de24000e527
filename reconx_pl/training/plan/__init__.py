"""What a run needs, said beforehand: memory, computation, trained parameters."""
