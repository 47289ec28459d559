"""One self-contained page, or a Markdown or PDF summary, of one or several runs or of
predictions."""
