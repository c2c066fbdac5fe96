"""Steering that switches itself on: classifiers, rules, the controller that gates steering, the audit log."""
