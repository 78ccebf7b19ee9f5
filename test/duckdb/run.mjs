// Runs the SQL on stdin with DuckDB, in memory, and prints what the last statement finds: a JSON object a row.
import { readFileSync } from "node:fs";
import { DuckDBInstance } from "@duckdb/node-api";

const connection = await (await DuckDBInstance.create(":memory:")).connect();
const found = await connection.runAndReadAll(readFileSync(0, "utf8"));
for (const row of found.getRowObjectsJson()) {
  console.log(JSON.stringify(row));
}
