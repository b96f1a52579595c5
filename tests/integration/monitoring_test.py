"""Every query of the dashboards and rules finds something in what the server really exports.

A real Prometheus scrapes a real server, with the job and the rules that docker-compose.yml gives it, and
is asked each query. The server has been made to do, and to refuse, something of everything.
"""
import json
import re
import socket
import subprocess
import sys
import unittest
import urllib.error
import urllib.parse
import urllib.request

import grpc

from adapters import Q0, SMALL, write_adapter
from harness import ServerTest, apply_request, clean_environment, find_tool, merge_request, until
from stubs import SOURCE_DIR
from tensors import array

MONITORING = SOURCE_DIR / "helm/adapterd/monitoring"
VARIABLES = {"$__rate_interval": "30s", "$namespace": ".*", "$instance": ".*"}
METRIC = re.compile(r"\b(?:up|(?:adapterd|grpc_server|process|instance:adapterd)[_:][a-z0-9_:]+)\b")
SCRAPES = 4  # that rates are made of


def dashboard_queries():
    for path in sorted((MONITORING / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                yield f"{path.name}: {panel['title']}", target["expr"]


def without_strings(expression):
    return re.sub(r'"[^"]*"', '""', expression)


class MonitoringTest(ServerTest):
    def serve(self):
        """A server that has answered all kinds of requests, and refused some."""
        folder = self.folder()
        write_adapter(folder / "small")
        write_adapter(folder / "large", {Q0: (1024, 1024, 64)})
        policy = folder / "policy.json"
        policy.write_text('{"anonymous_role": "admin"}')
        server = self.start(f"--adapter-root={folder}", "--memory-budget=200KiB", f"--access-policy={policy}")
        policy.write_text("{")
        until(lambda: server.metric("adapterd_access_policy_reads_total", result="failed"), "the broken policy to be read")
        client = server.client
        client.load("small", "small")
        with self.assertRaises(grpc.RpcError):  # MEMORY_BUDGET_EXCEEDED
            client.load("large", "large")
        wide_in, wide_out, _ = SMALL[Q0]
        client.apply(apply_request("small", Q0, array([[1.0] * wide_in]).proto()))
        client.merge(merge_request("small", Q0, array([[0.0] * wide_in] * wide_out).proto()))
        return server

    def scrape(self, server):
        program, folder = find_tool(self, "prometheus"), self.folder()
        config = (SOURCE_DIR / "compose/prometheus.yml").read_text()
        for old, new in (("adapterd:9464", server.admin), ("scrape_interval: 5s", "scrape_interval: 500ms"),
                         ("evaluation_interval: 15s", "evaluation_interval: 500ms"),
                         ("/etc/prometheus/rules.yaml", str(MONITORING / "rules.yaml"))):
            self.assertIn(old, config)
            config = config.replace(old, new)
        (folder / "prometheus.yml").write_text(config)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        process = subprocess.Popen(
            [program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
             f"--web.listen-address={self.address}"], env=clean_environment(),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        until(lambda: self.samples(f"count_over_time(up[1h]) >= {SCRAPES}"), "scrapes")
        until(lambda: self.samples("count_over_time(adapterd:rpc_seconds:p99_rate5m[1h]) >= 2"), "rules")

    def ask(self, path, **query):
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(url, timeout=10) as reply:
                return json.loads(reply.read())["data"]
        except urllib.error.HTTPError as error:
            if error.code == 503:  # not ready yet
                return {"result": []}
            raise AssertionError(f"{query}: {error.read().decode()}") from None
        except OSError:  # not up yet
            return {"result": []}

    def samples(self, query):
        return self.ask("query", query=query)["result"]

    def test_every_query_finds_something(self):
        self.scrape(self.serve())
        self.assertEqual(self.samples('adapterd_no_such_metric{job="adapterd"}'), [])
        queries = list(dashboard_queries())
        self.assertGreater(len(queries), 40)
        for panel, expression in queries:
            for variable, value in VARIABLES.items():
                expression = expression.replace(variable, value)
            with self.subTest(panel=panel):
                self.assertNotIn("$", expression)
                self.assertTrue(self.samples(expression), expression)

        names = set(self.ask("label/__name__/values"))
        rules = [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]
        self.assertGreater(len(rules), 15)
        for rule in rules:
            with self.subTest(rule=rule["name"]):
                self.assertEqual((rule["health"], rule.get("lastError")), ("ok", None))
                used = set(METRIC.findall(without_strings(rule["query"])))
                self.assertTrue(used)
                self.assertEqual(used - names, set())
                if rule["type"] == "recording":
                    self.assertTrue(self.samples(rule["name"]))
                elif rule["name"] == "AdapterdAccessPolicyFailed":
                    self.assertEqual(rule["state"], "firing")
                else:
                    self.assertIn(rule["state"], ("inactive", "pending"))


class DashboardTest(unittest.TestCase):
    def test_metrics_are_found_in_a_query(self):
        self.assertEqual(METRIC.findall(without_strings('up{job="adapterd_x"} + rate(adapterd_y:z[5m])')),
                         ["up", "adapterd_y:z"])

    def test_dashboards_can_be_told_apart_and_choose_their_data_source(self):
        boards = [json.loads(path.read_text()) for path in (MONITORING / "dashboards").glob("*.json")]
        self.assertEqual(len(boards), 4)
        self.assertEqual(len({board["uid"] for board in boards}), len(boards))
        for board in boards:
            ids = [panel["id"] for panel in board["panels"]]
            self.assertEqual(len(set(ids)), len(ids), board["title"])
            for panel in board["panels"]:
                for source in (panel["datasource"], *(each["datasource"] for each in panel["targets"])):
                    self.assertEqual(source, {"type": "prometheus", "uid": "${datasource}"}, panel["title"])


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
