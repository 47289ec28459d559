"""Each picture is a function DataFrame -> Figure; nothing here keeps state or shows a window."""
