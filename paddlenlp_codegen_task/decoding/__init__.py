"""Sequences, scheduler, samplers and stopping: the decode loop over any runtime."""
