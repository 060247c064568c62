"""Counting in Spark, where the events lie: only sums, code names and tallies come to this machine."""

from site_agent.spark.count import SparkCounted, count_in_spark

__all__ = ["SparkCounted", "count_in_spark"]
