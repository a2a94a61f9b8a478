"""Pictures of anything, from arrays of pixels and numbers: drawing, charts, pages, GIFs and videos."""
