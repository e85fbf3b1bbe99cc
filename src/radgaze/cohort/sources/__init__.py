"""Importers: the only place that knows a source's quirks. Each describes its studies and hands them to the engine."""
