"""Exports a trained CaiT to servers, phones, browsers and batch jobs."""
