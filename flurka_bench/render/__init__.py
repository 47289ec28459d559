"""Answers shown: tables, pages, pictures. What to say is chosen in ``answers``."""
