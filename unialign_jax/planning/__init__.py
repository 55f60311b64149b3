"""What a training stage needs on hardware that is not here: memory, FLOPs, collectives, time."""
