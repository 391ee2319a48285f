"""How the fan-out speaks to brokers: each module here has the functions of `tcpjson.bench.driver`."""
