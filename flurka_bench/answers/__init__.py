"""From records to answers: speedups with intervals, regions, agreement, recommendation."""
