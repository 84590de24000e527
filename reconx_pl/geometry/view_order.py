from dataclasses import dataclass
@dataclass(frozen=True)
class ViewOrder:
    order: tuple
    closed: bool
def view_order(cameras, cloud):
    return ViewOrder(tuple(range(len(cameras))), False)
