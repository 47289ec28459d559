"""The run loop: groups handed to a worker process, records appended. It knows no kind of run."""
