"""World models, a file a family. Each is imported when its public name is asked for (`hwm/entry_points.txt`)."""
