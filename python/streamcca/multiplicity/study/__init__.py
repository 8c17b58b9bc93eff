"""A whole study: settings, tasks that resume, results, report."""
