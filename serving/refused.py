"""The error of a request that is not answered."""

from __future__ import annotations

import grpc


class Refused(Exception):
    """A request that is not answered, with one sentence for its sender.

    Args:
      code: gRPC's code.
      message: what is wrong, on one line.
      http: HTTP's code where it is not the one that belongs to `code`.
    """

    def __init__(self, code: grpc.StatusCode, message: str, http: int | None = None):
        super().__init__(message)
        self.code, self.http = code, http
