from gateway import errors


def leaves(root: type[errors.GatewayError]) -> set[type[errors.GatewayError]]:
    children = root.__subclasses__()
    return {root} if not children else set().union(*map(leaves, children))


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    assert errors.__doc__ is not None
    for error in leaves(errors.GatewayError):
        line = next(line for line in errors.__doc__.splitlines() if f" {error.__name__} " in line)
        if issubclass(error, errors.RequestError | errors.RefusedError):
            assert error.code in line
            assert str(error.http_status) in line
        if issubclass(error, errors.RefusedError):
            assert str(int(error.close_code)) in line
