"""An Internet gateway device on loopback: its description and the few SOAP actions that port mapping needs."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_SERVICE = "urn:schemas-upnp-org:service:WANIPConnection:1"
_DESCRIPTION = f"""<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0">
<specVersion><major>1</major><minor>0</minor></specVersion><device>
<deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType><friendlyName>fake</friendlyName>
<deviceList><device><deviceType>urn:schemas-upnp-org:device:WANDevice:1</deviceType>
<serviceList><service><serviceType>urn:schemas-upnp-org:service:WANCommonInterfaceConfig:1</serviceType>
<serviceId>urn:upnp-org:serviceId:WANCommonIFC1</serviceId><controlURL>/common</controlURL>
<eventSubURL>/e</eventSubURL><SCPDURL>/s</SCPDURL></service></serviceList>
<deviceList><device><deviceType>urn:schemas-upnp-org:device:WANConnectionDevice:1</deviceType>
<serviceList><service><serviceType>{_SERVICE}</serviceType>
<serviceId>urn:upnp-org:serviceId:WANIPConn1</serviceId><controlURL>/control</controlURL>
<eventSubURL>/e</eventSubURL><SCPDURL>/s</SCPDURL></service></serviceList>
</device></deviceList></device></deviceList></device></root>"""


class FakeRouter(ThreadingHTTPServer):
    """`taken` ports are refused; `mappings` holds the ones made."""

    def __init__(self, taken: frozenset[int]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.taken = taken
        self.mappings: dict[int, int] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/desc.xml"


class _Handler(BaseHTTPRequestHandler):
    server: FakeRouter

    def do_GET(self) -> None:
        self._send(200, _DESCRIPTION)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        action = self.headers["SOAPAction"].strip('"').partition("#")[2]
        fields = dict(re.findall(r"<(New\w+)[^>]*>([^<]*)<", body))
        values: dict[str, str] = {}
        if action == "GetStatusInfo":
            values = {
                "NewConnectionStatus": "Connected",
                "NewLastConnectionError": "ERROR_NONE",
                "NewUptime": "9",
            }
        elif action == "GetExternalIPAddress":
            values = {"NewExternalIPAddress": "203.0.113.7"}
        elif action == "AddPortMapping" and int(fields["NewExternalPort"]) in self.server.taken:
            detail = "<errorCode>718</errorCode><errorDescription>ConflictInMappingEntry</errorDescription>"
            self._send(
                500,
                f'<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><s:Fault><detail><UPnPError>'
                f"{detail}</UPnPError></detail></s:Fault></s:Body></s:Envelope>",
            )
            return
        elif action == "AddPortMapping":
            self.server.mappings[int(fields["NewExternalPort"])] = int(fields["NewInternalPort"])
        elif action == "DeletePortMapping":
            self.server.mappings.pop(int(fields["NewExternalPort"]), None)
        inside = "".join(f"<{name}>{value}</{name}>" for name, value in values.items())
        self._send(
            200,
            f'<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>'
            f'<u:{action}Response xmlns:u="{_SERVICE}">{inside}</u:{action}Response></s:Body></s:Envelope>',
        )

    def _send(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/xml")
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def fake_router(*taken: int) -> Iterator[FakeRouter]:
    router = FakeRouter(frozenset(taken))
    thread = threading.Thread(target=router.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield router
    finally:
        router.shutdown()
        thread.join()
        router.server_close()
