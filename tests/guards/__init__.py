"""Takes the guards of tcpjson out, one at a time, and sees that a unit test turns red."""
