"""Factors in few bits whose product stays close to W."""
