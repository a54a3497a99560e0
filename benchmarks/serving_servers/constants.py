"""The answers of servers that run no model: as long as a real one to one row."""

OUTPUT = b'{"name":"y","datatype":"FP32","shape":[1,8],"data":[' + b",".join([b"0.12345678"] * 8) + b"]}"
BODY = b'{"model_name":"mlp","model_version":"1","outputs":[' + OUTPUT + b"]}"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
