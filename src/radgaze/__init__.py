"""radgaze."""
