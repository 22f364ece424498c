//! Native Linux sandboxes: namespaces, overlay, limits, diffs.
