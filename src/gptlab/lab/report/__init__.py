"""Reports: blocks of text, tables and figures, rendered as Markdown, HTML and LaTeX."""
