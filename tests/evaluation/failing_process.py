"""`mosa`, with records that take no ninth response from process 1 of a launch."""

import os
import sys

from mosa.evaluation.store import Store

from mosa.cli import main
from mosa.types import Response, UserError

if __name__ == "__main__":
    add_response = Store.add_response
    added: list[Response] = []

    def add_or_fail(self: Store, response: Response) -> None:
        added.append(response)
        if os.environ["RANK"] == "1" and len(added) == 9:
            raise UserError("the disk is full")
        add_response(self, response)

    Store.add_response = add_or_fail
    sys.exit(main())
