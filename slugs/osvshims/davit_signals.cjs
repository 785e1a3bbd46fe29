// Node.js on OSv: signals from outside come over TCP, a number a line. OSv has no way to interrupt the thread that waits for
// events, so that Node's own handlers would never run. Loaded by NODE_OPTIONS, before the app.
'use strict';
const port = Number(process.env['.signals'] || 0);
for (const name of Object.keys(process.env)) if (name.startsWith('.')) delete process.env[name]; // Davit's own
const main = require('node:worker_threads').isMainThread;
if (main && process.env.OSV_VERSION && process.cwd() === '/') process.chdir('/app'); // Capstan has no word for the directory
if (port && main) {
  const names = Object.entries(require('node:os').constants.signals);
  const server = require('node:net').createServer((connection) => {
    connection.on('error', () => {});
    connection.once('data', (data) => {
      const number = Number.parseInt(data, 10);
      const found = names.find(([, value]) => value === number);
      connection.end('ok\n', () => {
        if (found === undefined) return;
        if (process.listenerCount(found[0]) > 0) process.emit(found[0], found[0], number);
        else process.exit(128 + number);
      });
    });
  });
  server.on('error', () => {});
  server.listen(port, '0.0.0.0');
  server.unref();
}
