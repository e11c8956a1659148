"""A report to look at: one HTML file from an evaluation's saved results, or from two side by side.

`data` reads an evaluation's folder, `pictures` keeps the worst and the median images, `charts` draws, `sections` and
`pair` say what is shown, `page` puts it together.
"""
