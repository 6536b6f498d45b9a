"""Supervised actors on NATS JetStream: when one falls, its understudy goes on."""
